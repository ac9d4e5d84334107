"""The README is true: its program runs, and prints what its comment says."""

import re
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_program_of_the_readme_prints_what_its_comment_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (program,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
        if 'nb.save(net, "digits.safetensors")' in block
    )
    (claimed,) = re.findall(r"print\(.*\)  # (.+)", program)
    exec(program, {})  # noqa: S102
    assert capsys.readouterr().out.strip() == claimed
    assert (tmp_path / "digits.safetensors").stat().st_size > 0


def test_every_public_name_that_the_readme_mentions_exists():
    import nnbackend as nb

    names = set(re.findall(r"\bnb\.([A-Za-z_]+)", README.read_text()))
    assert {"Network", "train", "save", "load", "check_gradients"} <= names
    assert [name for name in sorted(names) if not hasattr(nb, name)] == []
