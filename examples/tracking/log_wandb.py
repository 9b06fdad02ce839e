"""Logs a report of forge to Weights & Biases: a run for each workflow, with its settings, metrics and samples."""
import json
import os
import pathlib

if not os.environ.get("WANDB_API_KEY"):
    raise SystemExit("WANDB_API_KEY is not set: nothing is logged")

import wandb  # noqa: E402

report = json.load(open("report.json", encoding="utf-8"))
project = os.environ.get("WANDB_PROJECT", report["run"]["pipeline"])
lines = []
for cell in report["cells"]:
    about = {"forge_run_id": report["run"]["run_id"], "forge_key": cell["key"]}
    config = {**cell["config"], **about}
    group = report["run"]["pipeline"]
    with wandb.init(project=project, name=cell["name"], group=group, config=config, dir="/tmp") as run:
        metrics = cell["summary"]["metrics"]
        # What was not measured is no number.
        run.summary.update({name: value for name, value in metrics.items() if value is not None})
        columns = ["sample", "epoch", "outcome", "answer", "targets"]
        rows = [
            [s["flow"], s["epoch"], s["outcome"], s["answer"], " | ".join(s["targets"])]
            for s in (row["sample"] for row in cell["samples"])
        ]
        run.log({"samples": wandb.Table(columns=columns, data=rows)})
        lines.append(f"{cell['name']} {run.url}\n")
out = pathlib.Path("out/tracking/wandb.txt")
out.parent.mkdir(parents=True, exist_ok=True)
out.write_text("".join(lines))
