"""A plugin beside the faulty one, never at fault itself."""

from __future__ import annotations

import os
from dataclasses import dataclass

from connector_service import AsyncConnectorBase, ConnectorRegistry, Resource, ResourceMeta
from connector_service.sdk.resource import Phase


@dataclass
class Order(ResourceMeta):
    what: str
    argument: str = ""


class Second(AsyncConnectorBase):
    name = "Second"

    def __init__(self) -> None:
        super().__init__(metadata_type=Order, task_type_name="second")

    async def create(self, task_template, output_prefix, inputs=None, **kwargs):
        return Order("answer")

    async def get(self, resource_meta, **kwargs):
        return Resource(phase=Phase.RUNNING, message=f"{os.getpid()}")

    async def delete(self, resource_meta, **kwargs):
        return None


ConnectorRegistry.register(Second())
