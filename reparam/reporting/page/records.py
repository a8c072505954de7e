"""What the page shows: facts about one or two runs, without tensors. Gathered by `reparam.report`, drawn by `page`."""

from typing import Literal

from reparam.cost.latency import Latency
from reparam.cost.measurement import Measured
from reparam.recipe.schema import Frozen
from reparam.reporting.commands import Commands
from reparam.reporting.environment import Environment
from reparam.reporting.exponents import ExponentHistogram
from reparam.reporting.module_tree import ModuleNode
from reparam.reporting.routing_map import LayerMap
from reparam.train.evaluate import Evaluation
from reparam.train.metrics import StageHistory


class Missing(Frozen):
    """Why a section is empty, in words, and the command that fills it, if there is one."""

    why: str
    command: str | None = None


class Figures(Frozen):
    """What one image costs one model.

    `operations` maps "mul.f32" and the like to counts; `modules` holds path and own operations of each module, which
    sum to them. `experts` says where mixtures sent their tokens in these counts, None without mixtures.
    """

    parameters: int
    operations: dict[str, int]
    modules: tuple[tuple[str, dict[str, int]], ...]
    uncounted: dict[str, int]
    experts: Literal["measured", "balanced"] | None
    file_bytes: int
    latency: Latency | None


class StageScore(Frozen):
    """Accuracy of one trained stage: straight after its conversion, and its best epoch (0 means that none beat it)."""

    name: str
    before: Evaluation
    best: Evaluation
    best_epoch: int
    epochs: int


class MappedImage(Frozen):
    """An image as the model saw it: a data URI, its size, its class and the one that the model gave it."""

    uri: str
    width: int
    height: int
    truth: str
    prediction: str


class RoutingFacts(Frozen):
    """Real images, and where each router sent their tokens."""

    images: tuple[MappedImage, ...]
    layers: tuple[LayerMap, ...]
    where: str


class SiteLoss(Frozen):
    """What converting one site alone did: points of top-1 lost, and the divergence of the logits in nats."""

    path: str
    kind: str
    operator: str
    top1_drop: float
    kl: float


class RunFacts(Frozen):
    """One run. `dense`, `dense_folder` and `dense_evaluation` are those of its original, None where that is not kept.

    Folders are quoted as a shell takes them. `blocks` are the paths over which costs are added up. `dense_digest` tells
    whether two runs share their original. `baselines` is what `reparam profile` left, measured then and on the machine
    that it names.
    """

    name: str
    folder: str
    model: str
    recipe: str | None
    summary: str | None
    paper: str | None
    input_size: tuple[int, ...]
    dense_digest: str | None
    dense_folder: str | None
    dense: Figures | None
    model_figures: Figures
    blocks: tuple[str, ...]
    dense_evaluation: Evaluation | None
    evaluation: Evaluation | None
    stages: tuple[StageScore, ...]
    tree: ModuleNode
    unseen: tuple[str, ...]
    exponents: tuple[ExponentHistogram, ...]
    history: tuple[StageHistory, ...]
    routing: RoutingFacts | Missing
    sensitivity: tuple[SiteLoss, ...] | Missing
    baselines: Measured | None
    commands: Commands


class PageFacts(Frozen):
    """The runs, the first one or two of them side by side, and what the page was made with. `made` is a date."""

    runs: tuple[RunFacts, ...]
    environment: Environment
    made: str
