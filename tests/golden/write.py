"""
Writes the expected texts anew: ``python -m tests.golden.write``, from the top of the repository.

Read the difference before you commit it: every line says something about how tasks are counted.
"""

from __future__ import annotations

from tests.golden.folding import HERE, RECORDINGS, SNAPSHOTS, fold, fold_snapshots


def main() -> None:
    for recording in RECORDINGS:
        (HERE / f"{recording.stem}.txt").write_text(fold(recording), "utf-8")
        print(f"{recording.stem}.txt")
    SNAPSHOTS.with_suffix(".txt").write_text(fold_snapshots(), "utf-8")
    print(f"{SNAPSHOTS.stem}.txt")


if __name__ == "__main__":
    main()
