import json

import pytest
from omegaconf import OmegaConf

from nemo_moslim.cli import compose_config
from nemo_moslim.data.folder import check_output, open_output, row_files


def write(target, name="train.jsonl", line="x"):
    with open_output(target) as folder:
        folder.write_line(name, line)
        return folder.write_manifest({"task": "sft"})


def test_files_appear_together_with_hashes(tmp_path):
    target = tmp_path / "a" / "out"
    manifest = write(target)
    assert (target / "train.jsonl").read_text() == "x\n"
    assert json.loads((target / "manifest.json").read_text()) == manifest
    digest = "73cb3858a687a8494ca3323053016282f3dad39d42cf62ca4e79dda2aac7d9ac"  # sha256sum of "x\n"
    assert manifest["files"] == {"train.jsonl": digest}
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_own_output_is_replaced_as_a_whole(tmp_path):
    write(tmp_path / "out", name="validation.jsonl")
    write(tmp_path / "out", line="y")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "train.jsonl"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing_new(tmp_path, error):
    write(tmp_path / "out", line="old")
    with pytest.raises(error), open_output(tmp_path / "out") as folder:
        folder.write_line("train.jsonl", "new")
        raise error
    assert (tmp_path / "out" / "train.jsonl").read_text() == "old\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_others_files_are_never_replaced(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    assert check_output(folder) == folder  # empty
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="mine.txt"):
        write(folder)
    write(tmp_path / "own")
    (tmp_path / "own" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="mine.txt"):
        write(tmp_path / "own")
    with pytest.raises(ValueError, match="is a file"):
        check_output(folder / "mine.txt")
    with pytest.raises(ValueError, match="output"):
        check_output("")
    (folder / "mine.txt").unlink()
    for text in ("{}", "[]", "3", '{"tool": "another", "files": {}}', "{"):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match="manifest.json"):
            check_output(folder)


def test_a_line_that_is_not_unicode_is_not_half_written(tmp_path):
    with open_output(tmp_path / "out") as folder:
        folder.write_line("a.jsonl", "one")
        with pytest.raises(UnicodeEncodeError):
            folder.write_line("a.jsonl", "b\ud800")
        folder.write_manifest({})
    assert (tmp_path / "out" / "a.jsonl").read_text() == "one\n"


def test_rows_that_were_set_aside_are_no_rows_of_the_folder(tmp_path):
    from nemo_moslim.data.prepare import prepare
    from nemo_moslim.data.prepare_settings import PrepareSettings

    source, target = tmp_path / "rows.jsonl", tmp_path / "out"
    source.write_text('{"prompt": "p", "response": "r"}\nnot JSON\n')
    settings = compose_config(
        "prepare_data", ["task=sft", f"input={source}", f"output={target}", "on_bad_row=quarantine", "validation=0"]
    )
    prepare(PrepareSettings.from_config(OmegaConf.to_container(settings, resolve=True)))
    assert len(list(target.glob("*.jsonl"))) == 2
    assert row_files(target) == [target / "train.jsonl"]
