"""A container with a backend before it."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.cluster.external.runner import Runner, runner


@pytest.fixture
async def container() -> AsyncIterator[Runner]:
    async with runner() as started:
        yield started


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        yield session
