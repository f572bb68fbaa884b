"""What schemathesis cannot know of the API by its document."""

import schemathesis
from schemathesis.transport.serialization import Binary


@schemathesis.serializer("application/zip")
def as_it_is(ctx, value):
    """The bytes of an archive, or what is sent in place of one."""
    return value.data if isinstance(value, Binary) else str(value).encode()
