"""Exporting: a base as an ONNX folder that other clients load, proven to answer as our torch model does."""

from lorahub_edge.exporting.entry import Exported, export
from lorahub_edge.exporting.gguf_adapter import GgufAdapter, export_gguf_adapter
from lorahub_edge.exporting.verification import VerificationFailed, verify

__all__ = ["Exported", "GgufAdapter", "VerificationFailed", "export", "export_gguf_adapter", "verify"]
