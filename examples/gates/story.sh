#!/bin/sh
# A prompt changes on a branch; the gate compares with main and says no; after the fix it says yes.
# Needs nothing but git and forge, and works in a folder of its own.
#   sh examples/gates/story.sh target/release/forge
set -eu
forge=$(realpath "$(command -v "${1:-forge}")")
here=$(dirname "$(realpath "$0")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

export GIT_AUTHOR_NAME=forge GIT_AUTHOR_EMAIL=forge@example.org
export GIT_COMMITTER_NAME=forge GIT_COMMITTER_EMAIL=forge@example.org
bench=examples/gates/bench.toml
prompt=examples/gates/template.toml

# Applies, says what the gates say, and expects an exit code.
gated() {
    echo "\$ forge apply $bench   # $2"
    code=0
    "$forge" apply "$bench" > said 2>&1 || code=$?
    grep -E '^(pass|FAIL|n/a|gates)' said
    echo
    [ "$code" = "$1" ] || { cat said; echo "exit code $code, not $1"; exit 1; }
}
commit() {
    git add -A
    git commit -q -m "$1"
}

git init -q -b main
mkdir -p examples/gates
cp "$here/bench.toml" "$here/template.toml" "$here/numbers.csv" examples/gates/
printf '.forge/\nout/\nsaid\n' > .gitignore
commit "A benchmark with gates"
gated 0 "main, for the first time"
commit "Its results"

git checkout -q -b shorter
sed -i 's/Is {{/At once: is {{/' "$prompt"
gated 100 "a branch with another prompt"
commit "A prompt in a hurry"

sed -i 's/At once: is/Odd or even? Is/' "$prompt"
gated 0 "the same branch, the prompt mended"
commit "A prompt with more patience"

git checkout -q main
git merge -q shorter
gated 0 "main after the merge: nothing is asked again"
