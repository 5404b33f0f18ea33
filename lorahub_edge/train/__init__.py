"""Train: a LoRA module for one upstream task, with PEFT; and a base tuned for a while, to compare with."""

from lorahub_edge.train.lora import train_module
from lorahub_edge.train.settings import TrainSettings
from lorahub_edge.train.tuning import Tuned, tuned

__all__ = ["TrainSettings", "Tuned", "train_module", "tuned"]
