"""The platforms: one folder each, and the one table that lists them."""

from exporter.platform import Platform
from exporter.platforms import cognaize, etlworks, make, n8n, qlik

PLATFORMS: dict[str, Platform] = {
    platform.name: platform
    for platform in (make.PLATFORM, qlik.PLATFORM, etlworks.PLATFORM, cognaize.PLATFORM, n8n.PLATFORM)
}
