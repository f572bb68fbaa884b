#!/bin/sh
# Takes Rhai's own suite from the repository that its crate names, at the commit that the crate was made of, into the folder
# given. Nothing of it is kept here. Where it cannot be had it says so, and leaves no folder `tests` there. `cargo xtask soak`
# has its scripts run by native Rhai and by ours; by hand:
#   PICLOUD_RHAI_SUITE=/that/folder cargo test --locked --test beside_native -- upstream --nocapture     (in guest-rhai/)
set -eu
folder=${1:?"say where to put it"}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$(dirname "$0")/../../guest-rhai"
crate=$(cargo metadata --format-version 1 --locked | python3 -c '
import json, sys
rhai = next(p for p in json.load(sys.stdin)["packages"] if p["name"] == "rhai")
made = json.load(open(rhai["manifest_path"].removesuffix("Cargo.toml") + ".cargo_vcs_info.json"))
print(rhai["repository"], made["git"]["sha1"])')
repository=${crate% *}
commit=${crate#* }
git init -q "$folder"
if [ "$(git -C "$folder" rev-parse -q --verify HEAD)" != "$commit" ]; then
    rm -rf "$folder/tests"
    GIT_TERMINAL_PROMPT=0 git -C "$folder" fetch -q --depth 1 "$repository" "$commit" || {
        echo "NOTE: $repository cannot be had from here; its suite is not run" >&2
        exit 0
    }
fi
git -C "$folder" checkout -q --force "$commit"
