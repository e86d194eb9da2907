"""All figures, by the name that the command takes."""

from dualpath.bench.reproduce.figure import Figure
from dualpath.bench.reproduce.figures.ablation import ABLATION
from dualpath.bench.reproduce.figures.append import APPEND
from dualpath.bench.reproduce.figures.balance import BALANCE
from dualpath.bench.reproduce.figures.beyond import BEYOND
from dualpath.bench.reproduce.figures.cache_compute import CACHE_COMPUTE
from dualpath.bench.reproduce.figures.offline import OFFLINE
from dualpath.bench.reproduce.figures.online import ONLINE
from dualpath.bench.reproduce.figures.pd import PD
from dualpath.bench.reproduce.figures.scale import SCALE
from dualpath.bench.reproduce.figures.working_set import WORKING_SET

_ALL = (CACHE_COMPUTE, OFFLINE, PD, APPEND, ONLINE, ABLATION, BALANCE, SCALE, WORKING_SET, BEYOND)

FIGURES: dict[str, Figure] = {figure.name: figure for figure in _ALL}
