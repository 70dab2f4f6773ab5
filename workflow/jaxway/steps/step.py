"""Steps of trainings and of training benchmarks: all that their memory and time depend on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from jaxway_shared import presets
from jaxway_shared.benchmark import TRAINED

from jaxway.config.gpus import Gpu, known_gpus
from jaxway.config.options import options_of


@dataclass(frozen=True)
class Shape:
    """Options of train.py that shape the program of a step, resolved."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp: str
    mlp_width: int
    tied_embeddings: bool
    ngram: int
    document_attention: bool
    context: int
    global_batch: int
    gradient_accumulation_steps: int
    dtype: str | None
    remat: str
    unroll: bool
    fsdp: int
    tensor: int


@dataclass(frozen=True)
class Step:
    """One step of a training on GPUs of one kind, by its name in profiles/gpus.yaml."""

    shape: Shape
    vocabulary: int
    gpu: str
    nodes: int
    gpus_per_node: int
    accumulates: bool = True  # its program has the option gradient_accumulation_steps

    @property
    def devices(self) -> int:
        """GPUs, on all nodes together."""
        return self.nodes * self.gpus_per_node

    @property
    def kind(self) -> Gpu:
        return known_gpus()[self.gpu]

    def arguments(self) -> dict[str, Any]:
        """For make_setup() of jaxway_job/compile_for_gpu.py."""
        return {
            "name": self.gpu,
            "gpu": asdict(self.kind),
            "options": {**resolved({}), **asdict(self.shape)},
            "vocabulary": self.vocabulary,
            "hosts": self.nodes,
            "gpus": self.gpus_per_node,
        }


def resolved(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of train.py; those that are not named have their defaults."""
    return presets.resolve({**defaults("scripts/train.py"), **options})


def defaults(file: str) -> dict[str, Any]:
    """Those of a program's options."""
    return {name: each["default"] for name, each in options_of(file).items()}


def shape_of(options: Mapping[str, Any]) -> Shape:
    """What options of train.py make of a step."""
    values = resolved(options)
    return Shape(**{field.name: values[field.name] for field in fields(Shape)})


def step_of(
    options: Mapping[str, Any], vocabulary: int, gpu: str, nodes: int, gpus_per_node: int
) -> Step:
    """The step of a training with these options; those that are not named have their defaults."""
    return Step(shape_of(options), vocabulary, gpu, nodes, gpus_per_node)


def step_of_benchmark(
    options: Mapping[str, Any], preset: str, gpu: str, nodes: int, gpus_per_node: int
) -> Step:
    """The step of one size in a training benchmark: as a training's."""
    values = {**defaults("scripts/benchmark_train.py"), **options}
    shape = {name: values[name] for name in ("heads", "fsdp", "remat", "unroll")}
    shape["preset"] = preset
    shape["global_batch"] = (
        values["global_batch"] or values["batch_per_device"] * nodes * gpus_per_node
    )
    vocabulary = values["vocabulary"] or TRAINED["gpu"][1]
    step = step_of(shape, vocabulary, gpu, nodes, gpus_per_node)
    return replace(step, accumulates=False)
