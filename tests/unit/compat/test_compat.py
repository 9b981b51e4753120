"""Every file of compat/ says what it is for and has a test that fails once it is no longer needed."""

from pathlib import Path

import pytest

import mtlrec.compat

FOLDER = Path(mtlrec.compat.__file__).parent
FILES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("file", FILES)
def test_a_file_says_what_upstream_does_and_when_to_delete_it(file: str) -> None:
    text = (FOLDER / f"{file}.py").read_text(encoding="utf-8")
    docstring = text.split('"""')[1]
    for part in ("\nUpstream:", "Seen in ", "\nDelete when: "):
        assert part in docstring, f"compat/{file}.py does not say {part.strip()!r}"
    assert f"\n    {file} " in str(mtlrec.compat.__doc__)
    assert (Path(__file__).parent / f"test_{file}.py").is_file()


def test_the_list_has_no_others() -> None:
    listed = [line.split()[0] for line in str(mtlrec.compat.__doc__).splitlines() if line.startswith("    ")]
    assert sorted(listed) == FILES
