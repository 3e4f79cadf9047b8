"""Reader of the instructions of a Dockerfile, and their replay in a folder where there is no docker."""

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

# In mount, process and network namespaces of its own, without an interface that is up.
INSIDE = """
set -e
root=$1 read_only=$2 directory=$3 user=$4 mounts=$5
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
while IFS='|' read -r source target; do
    [ -z "$target" ] || { mkdir -p "$root$target"; mount --bind "$source" "$root$target"; }
done <<< "$mounts"
if [ "$read_only" = yes ]; then
    mount -o remount,bind,ro "$root"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
fi
shift 5
exec chroot --userspec="$user" --groups= "$root" env -i "$@"
"""


@dataclass
class Instruction:
    """An instruction: its keyword, its options (``--mount=...``) and the rest of its text."""

    keyword: str
    options: list[str]
    text: str

    def words(self) -> list[str]:
        return json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)


def read_instructions(path):
    """Return the instructions of a Dockerfile."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    instructions = []
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if line.strip():
            keyword, _, text = line.partition(" ")
            options = re.match(r"(?:--\S+\s+)*", text.strip())[0]
            instructions.append(Instruction(keyword, options.split(), text.strip()[len(options) :]))
    return instructions


@dataclass
class Replay:
    """An image's file system, made in a folder by the instructions of its Dockerfile.

    Args:
        root: the content of the base image; the instructions change it.
        context: the build context.
    """

    root: Path
    context: Path
    environment: dict = field(default_factory=dict)
    arguments: dict = field(default_factory=dict)
    labels: dict = field(default_factory=dict)
    directory: str = "/"
    user: str = "0:0"
    entry: list = field(default_factory=list)
    health: list = field(default_factory=list)

    def build(self):
        """Carry out all instructions."""
        for instruction in read_instructions(self.context / "Dockerfile"):
            getattr(self, f"do_{instruction.keyword.lower()}")(instruction)

    def resolve(self, text):
        values = {**self.arguments, **self.environment}
        return re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], text)

    def pairs(self, instruction):
        return dict(word.split("=", 1) for word in shlex.split(self.resolve(instruction.text)))

    def run_inside(self, *command, mounts=None, read_only=False):
        """Run a command in the file system as the current user, without a network."""
        folders = "\n".join(f"{source}|{target}" for target, source in (mounts or {}).items())
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        script = ["unshare", "--mount", "--net", "--pid", "--fork", "bash", "-c", INSIDE, "inside", str(self.root)]
        script += ["yes" if read_only else "no", self.directory, self.user, folders, *variables]
        script += ["sh", "-c", 'cd "$0" && exec "$@"', self.directory, *command]
        return subprocess.run(script, capture_output=True, text=True, check=False)

    def do_arg(self, instruction):
        name, has_default, default = instruction.text.partition("=")
        if has_default:
            self.arguments[name] = default

    def do_from(self, instruction):
        self.arguments["base"] = self.resolve(instruction.text)

    def do_label(self, instruction):
        self.labels.update(self.pairs(instruction))

    def do_env(self, instruction):
        self.environment.update(self.pairs(instruction))

    def do_run(self, instruction):
        mounts = {}
        for option in instruction.options:
            values = dict(part.split("=") for part in option.removeprefix("--mount=").split(","))
            mounts[values["target"]] = self.context / values["source"]
        done = self.run_inside("sh", "-c", instruction.text, mounts=mounts)
        assert done.returncode == 0, (instruction.text, done.stdout[-2000:], done.stderr[-4000:])

    def do_copy(self, instruction):
        *sources, target = instruction.words()
        destination = self.root / target.lstrip("/")
        for source in (self.context / name for name in sources):
            if source.is_dir():
                shutil.copytree(source, destination, dirs_exist_ok=True)
            else:
                destination.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, destination)

    def do_workdir(self, instruction):
        self.directory = instruction.text
        (self.root / instruction.text.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def do_user(self, instruction):
        self.user = instruction.text

    def do_healthcheck(self, instruction):
        self.health = json.loads(instruction.text.removeprefix("CMD "))

    def do_entrypoint(self, instruction):
        self.entry = instruction.words()
