"""A file at an address of the web, fetched for a visitor: from public hosts only, up to a size, within a time."""

import asyncio
import ipaddress
import socket

import httpx

from dalle_core.errors import InputError

MOST = 20 * 2**20  # bytes
LONGEST = 20  # seconds
REDIRECTS = 5
NOWHERE = "This address cannot be fetched: it must be an http or https address that everybody can reach."


def fetched(url: str) -> bytes:
    """What is at `url`. Raises InputError, in the same words for a host that is private and for one that does not exist."""
    try:
        return asyncio.run(asyncio.wait_for(_fetched(url), LONGEST))
    except TimeoutError:
        raise InputError(f"This address did not answer within {LONGEST} seconds.") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(NOWHERE) from None


async def _fetched(url: str) -> bytes:
    for _ in range(REDIRECTS):
        parsed = httpx.URL(url)
        if parsed.scheme not in ("http", "https"):
            raise InputError(NOWHERE)
        # Connects to the very address that was judged: the name may mean another one a moment later.
        request = {
            "url": parsed.copy_with(host=await public_address(parsed.host)),
            "headers": {"Host": parsed.netloc.decode()},
            "extensions": {"sni_hostname": parsed.host},
            "timeout": LONGEST,
        }
        # trust_env: a proxy would look the name up again.
        async with httpx.AsyncClient(trust_env=False) as client, client.stream("GET", **request) as answer:
            if answer.has_redirect_location:
                url = str(parsed.join(answer.headers["Location"]))
                continue
            if answer.status_code != 200:
                raise InputError(f"This address answered {answer.status_code}, not with a file.")
            content = bytearray()
            async for part in answer.aiter_bytes():
                content += part
                if len(content) > MOST:
                    raise InputError(f"The file at this address is larger than {MOST // 2**20} MB.")
            return bytes(content)
    raise InputError("This address leads on to too many others.")


async def public_address(host: str) -> str:
    """The IP address of a host. Raises InputError unless all that it has are the public internet's."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(info[4][0]) for info in found]
    for address in addresses:
        plain = getattr(address, "ipv4_mapped", None) or address
        if not plain.is_global or plain.is_multicast:
            raise InputError(NOWHERE)
    return str(addresses[0])
