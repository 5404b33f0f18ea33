"""Serve: answers from an exported folder with onnxruntime alone; nothing here imports torch or transformers."""

from lorahub_edge.serve.folder import ExportFolder, open_folder
from lorahub_edge.serve.generate import generate, stream
from lorahub_edge.serve.model import OnnxModel
from lorahub_edge.serve.sequences import Completion, Piece
from lorahub_edge.serve.settings import GenerationSettings
from lorahub_edge.serve.state import State

__all__ = [
    "Completion",
    "ExportFolder",
    "GenerationSettings",
    "OnnxModel",
    "Piece",
    "State",
    "generate",
    "open_folder",
    "stream",
]
