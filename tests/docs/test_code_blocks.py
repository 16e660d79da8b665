"""Every code block of the documentation is run, or at least checked; CONTRIBUTING.md says how."""

import random
from collections.abc import Iterator
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from code_blocks import PAGES, ROOT, Block, blocks
from running import COPY, OWN, run_page

from sibp.runs.errors import UserError

pytestmark = pytest.mark.slow

ALL = [block for page in PAGES for block in blocks(page)]
LEFT_OUT = [pytest.param(block, marks=pytest.mark.skip(block.reason), id=str(block)) for block in ALL if block.reason]
TUTORIAL = ROOT / "docs" / "tutorial"  # tested separately, as its code draws its pictures
RUN = [block.page for block in ALL if block.language == "python" or block.marker == "run" or block.title]
RUN = [page for page in dict.fromkeys(RUN) if page.parent != TUTORIAL]
ONE_PROCESS = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder; restores what a page may change for the whole process."""
    monkeypatch.chdir(tmp_path)
    for key, value in {"MPLBACKEND": "Agg", **ONE_PROCESS}.items():  # the environment torchrun gives a single process
        monkeypatch.setenv(key, value)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.random.set_rng_state(states[2])


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")  # raised inside SequentialLR in torch 2.6
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_of_a_page_do_what_it_says(page: Path) -> None:
    run_page(page)


@pytest.mark.parametrize("block", [pytest.param(b, id=str(b)) for b in ALL if b.language == "bash" and not b.marker])
def test_commands_exist_and_accept_their_arguments(block: Block) -> None:
    for words in commands.words_of(block.code):
        commands.check(words)


@pytest.mark.parametrize("block", LEFT_OUT)
def test_skipped_block(block: Block) -> None:
    """Never runs: pytest -rs lists these blocks with their reasons."""


def test_every_block_has_a_checked_language() -> None:
    known = {"python", "bash", "text", "yaml", "json", "toml", "diff", "markdown"}
    assert [str(block) for block in ALL if block.language not in known] == []


WRONG = {
    "code that fails": "```python\n1 / 0\n```\n",
    "output that differs": "```python\nprint(2)\n```\n\n```text\n3\n```\n",
    "output that goes on": "```python\nprint('a\\nb')\n```\n\n```text\na\n```\n",
    "a command that fails": "<!-- run -->\n```bash\npython -c 'raise SystemExit(1)'\n```\n",
    "a setting that is not there": "```bash\npython -m sibp.train nonsense=1\n```\n",
    "a target that is not there": "```bash\nmake nonsense\n```\n",
    "a command that nothing checks": "```bash\nnonsense\n```\n",
}
RIGHT = """
```python title="folder/file.py"
x = 4
```

```diff title="folder/file.py"
-x = 4
+x = 5
```

1. In a list, and left out:

    <!-- not run: it needs data -->
    ```python
    1 / 0
    ```

```python
from pathlib import Path

exec(Path("folder/file.py").read_text())
print(f"x is {x}, and the time is {id(x)}")
```

```text
x is 5, and the time is ...
```

<!-- run -->
```bash
python -c "print('from the shell')"  # a comment
```

```text
from the shell
```
"""


def look_at(page: Path) -> None:
    """Apply the tests above to one page."""
    run_page(page)
    for block in blocks(page):
        if block.language == "bash" and not block.marker:
            test_commands_exist_and_accept_their_arguments(block)


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes_are_detected(mistake: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(WRONG[mistake])
    with pytest.raises((ArithmeticError, AssertionError, UserError)):
        look_at(tmp_path / "page.md")


@pytest.mark.usefixtures("_elsewhere")
def test_a_page_without_mistakes_passes(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(RIGHT)
    look_at(tmp_path / "page.md")
    assert [block.reason for block in blocks(tmp_path / "page.md") if block.reason] == ["it needs data"]


def test_pages_followed_in_one_folder_do_not_find_each_others_runs() -> None:
    """Otherwise a run that one page trains would be skipped on the next, or counted in its report."""
    roots: dict[str, set[Path]] = {}
    for block in ALL:
        outside = COPY in block.page.read_text() or OWN in block.page.read_text()
        for words in commands.words_of(block.code) if block.marker == "run" and not outside else ():
            if words[:2] == ["sibp", "train"]:
                root = next((word for word in words if word.startswith("run_root=")), "no run_root")
                roots.setdefault(root, set()).add(block.page)
    assert len(roots) > 3
    assert "no run_root" not in roots
    assert {root: pages for root, pages in roots.items() if len(pages) > 1} == {}
