"""
Writes the expected texts anew: ``python -m tests.golden.write``, from the top of the repository.

Read the difference before you commit it: every line says something about how tasks are counted.
"""

from __future__ import annotations

from tests.golden.folding import HERE, RECORDINGS, fold


def main() -> None:
    for recording in RECORDINGS:
        (HERE / f"{recording.stem}.txt").write_text(fold(recording), "utf-8")
        print(f"{recording.stem}.txt")


if __name__ == "__main__":
    main()
