"""Train: a LoRA module for one upstream task, with PEFT."""

from lorahub_edge.train.lora import TrainSettings, train_module

__all__ = ["TrainSettings", "train_module"]
