"""The application of `lorahub_edge.serve.on_ray`, with answers that take their time and end only at their limit."""

import dataclasses
import time
from unittest import mock

from lorahub_edge.serve import on_ray

STEP_S = 0.02


class Replica(on_ray.Replica):
    def __init__(self, arguments):
        super().__init__(arguments)
        models, model = self.service.models, self.service.model
        models.base = dataclasses.replace(models.base, files=dataclasses.replace(model.files, end_ids=()))
        step = model.step

        def slow_step(state, tokens):
            time.sleep(STEP_S)
            return step(state, tokens)

        model.step = slow_step


def app(arguments: on_ray.Arguments):
    with mock.patch.object(on_ray, "Replica", Replica):
        return on_ray.app(arguments)
