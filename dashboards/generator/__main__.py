"""`make dashboards`: writes every dashboard beside this folder."""

from pathlib import Path

from dashboards.generator import dead_letters, overview, service, workflow
from dashboards.generator.exceptions import lint
from dashboards.generator.panels import rendered

FOLDER = Path(__file__).parent.parent
BOARDS = (overview.BOARD, workflow.BOARD, dead_letters.BOARD, service.BOARD)


def files() -> dict[Path, str]:
    """What every file should say."""
    boards = {
        FOLDER / f"{board.uid}.json": rendered(board, others=[b for b in BOARDS if b is not board]) for board in BOARDS
    }
    return boards | {FOLDER / ".lint": lint(BOARDS)}


if __name__ == "__main__":
    for file, text in files().items():
        file.write_text(text)
