"""Exporting: a base as an ONNX folder that other clients load, proven to answer as our torch model does."""

from lorahub_edge.exporting.entry import Exported, export
from lorahub_edge.exporting.verification import VerificationFailed, verify

__all__ = ["Exported", "VerificationFailed", "export", "verify"]
