# Questions on the multiplication table, as JSON Lines.
BEGIN {
    for (i = 0; i < rows; i++) {
        a = 1 + i % 4; b = 1 + int(i / 4) % 9
        out = sprintf("{\"id\": \"q%d\", \"question\": \"What is %d times %d?\", \"answers\": [\"%d\"], ", i, a, b, a * b)
        printf "%s\"category\": \"table\", \"steps\": %d}\n", out, a > "out/custom-graph/rows.jsonl"
    }
}
