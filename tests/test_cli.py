import subprocess
import sys

import pytest

from hfchat.cli import main


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom hfchat.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'datatrove', 'trl', 'fastapi', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "demo" in finished.stdout
    assert "serve" in finished.stdout


@pytest.mark.parametrize("argv", [["bake"], ["serve"], ["demo", "--port", "many"], ["demo", "--outputdir", "x"]])
def test_a_bad_command_line_is_one_line_and_status_2(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
