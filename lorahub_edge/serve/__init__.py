"""Serve: answers from an exported folder with onnxruntime alone; nothing here imports torch or transformers."""

from lorahub_edge.serve.folder import ExportFolder, open_folder
from lorahub_edge.serve.generate import Completion, Piece, generate, stream
from lorahub_edge.serve.model import OnnxModel, State
from lorahub_edge.serve.settings import GenerationSettings

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
