"""Orders to the terminal in names from files: none is printed, by any way out."""

import sys
import warnings

from tqdm import tqdm

from ucgm.runtime.terminal import printable, printable_output


def test_orders_become_text():
    assert printable("a b\tc\nd é 犬") == "a b\tc\nd é 犬"
    assert printable("\x1b]0;owned\x07x") == "\\x1b]0;owned\\x07x"
    assert printable("\x1b[2Jx\x9b31m") == "\\x1b[2Jx\\x9b31m"
    assert printable("error\rfine") == "error\\rfine" and printable("\r\r12 %") == "\r\r12 %"
    assert printable("\x1b[1;34mwandb\x1b[0m: x") == "wandb: x"
    assert printable("a\u202eb\ud800") == "a\\u202eb\\ud800"


def test_all_ways_out_are_covered(capsys, monkeypatch):
    evil = "run\x1b[2J"
    with printable_output():
        print(evil)
        print(evil, file=sys.stderr)
        sys.stdout.writelines([evil])
        for _ in tqdm(range(2), desc=evil, file=sys.stdout):
            pass
        assert not sys.stdout.isatty()
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and out.count("run\\x1b[2J") >= 3
    assert err == "run\\x1b[2J\n" and "2/2" in out


def test_a_warning_is_one_line():
    before = warnings.formatwarning
    with printable_output():
        text = warnings.formatwarning("3 samples", UserWarning, "a.py", 5, "code")
    assert text == "warning: 3 samples\n" and warnings.formatwarning is before


def test_the_first_process_alone_prints_and_warns(monkeypatch, capsys):
    for rank, loud in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        with printable_output():
            print("chosen")
            print("an error", file=sys.stderr)
            warned = warnings.formatwarning("3 samples", UserWarning, "a.py", 5, "code")
        assert capsys.readouterr() == ("chosen\n" if loud else "", "an error\n")
        assert warned == ("warning: 3 samples\n" if loud else "")
