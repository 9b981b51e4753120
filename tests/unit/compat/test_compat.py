"""Every file of compat/ says what it is for and has a test that fails once it is no longer needed."""

from pathlib import Path

import pytest

import mtlrec.compat

FOLDER = Path(mtlrec.compat.__file__).parent
FILES = sorted(path.relative_to(FOLDER) for path in FOLDER.glob("**/*.py") if path.stem != "__init__")


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_says_what_upstream_does_and_when_to_delete_it(file: Path) -> None:
    docstring = (FOLDER / file).read_text(encoding="utf-8").split('"""')[1]
    for part in ("\nUpstream:", "Seen in ", "\nDelete when: "):
        assert part in docstring, f"compat/{file} does not say {part.strip()!r}"
    assert (Path(__file__).parent / file.with_name(f"test_{file.name}")).is_file()


def test_the_list_has_every_file_and_no_others() -> None:
    listed = [line.split()[0] for line in str(mtlrec.compat.__doc__).splitlines() if line.startswith("    ")]
    assert sorted(listed) == sorted(".".join(file.with_suffix("").parts) for file in FILES)
