"""Figures that others published, to be shown beside ours as what they are: quotations, not measurements of ours."""

from typing import NamedTuple


class PublishedRow(NamedTuple):
    """
    What a paper printed for one model and set.

    Args:
        model (`str`):
            The model.
        plcc (`float` or `None`):
            Its PLCC in [-1, 1], by the paper's own protocol; `None` where it was not at hand.
        srcc (`float`):
            Its SRCC in [-1, 1].
        source (`str`):
            Where the figures stand.
    """

    model: str
    plcc: float | None
    srcc: float
    source: str


SETS = ("koniq10k", "spaq", "kadid10k", "pipal", "livec", "agiqa3k", "csiq")

_DEQA = "DeQA-Score, arXiv 2501.11561"
_Q_INSIGHT = "Q-Insight, arXiv 2503.22679"
_RALI = "quoted by RALI, arXiv 2510.11369"
_Q_HAWKEYE = "Q-Hawkeye, arXiv 2601.22920"

# PLCC/SRCC, all trained on KonIQ-10k alone. The columns are SETS.
_ROWS = {
    ("Q-Align", _DEQA): ".941/.940 .886/.887 .674/.684 .403/.419 .853/.860 .772/.735 .785/.737",
    ("DeQA-Score", _DEQA): ".953/.941 .895/.896 .694/.687 .472/.478 .892/.879 .809/.729 .787/.744",
    ("Q-Insight", _Q_INSIGHT): ".933/.916 .907/.905 .742/.736 .486/.474 .893/.865 .811/.764 .870/.824",
    ("VisualQuality-R1", _RALI): ".923/.908 .891/.892 .712/.711 .441/.438 .874/.849 .822/.767 .712/.662",
    ("Q-Hawkeye", _Q_HAWKEYE): "- -/.903 - - - -/.752 -/.806",
}


def published_rows(dataset: str) -> list[PublishedRow]:
    """
    Returns what is known to be published for a set.

    Args:
        dataset (`str`):
            Name of the set, one of `SETS`.

    Returns:
        `list[PublishedRow]`: Rows of models that were trained on KonIQ-10k alone; empty for another set.
    """
    if dataset not in SETS:
        return []
    rows = []
    for (model, source), figures in _ROWS.items():
        cell = figures.split()[SETS.index(dataset)]
        if cell != "-":
            linear, rank = cell.split("/")
            rows.append(PublishedRow(model, None if linear == "-" else float(linear), float(rank), source))
    return rows
