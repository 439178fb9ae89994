"""Starts LocalStack with one fault mended: it draws ENI addresses at random, without looking.

Unmended, two ENIs of a subnet get the same address sooner or later, and now and then one gets the
gateway's. EC2 never does that (Amazon VPC User Guide, subnet CIDR blocks: the first four addresses and the
last are reserved). Here an address is the subnet's next one that no ENI holds.
"""

import ipaddress
import runpy

from moto.ec2.models import ec2_backends, elastic_network_interfaces

FIRST = 16  # below that the lab gives instances their primary addresses
drawn_at_random = elastic_network_interfaces.random_private_ip
last = {}


def held():
    for regions in ec2_backends.values():
        for backend in regions.values():
            for eni in backend.enis.values():
                for item in eni.private_ip_addresses:
                    yield item.get("PrivateIpAddress")


def next_free(cidr=None, ipv6=False):
    if ipv6 or not cidr:
        return drawn_at_random(cidr, ipv6)
    subnet = ipaddress.IPv4Network(cidr)
    size = subnet.num_addresses - 1 - FIRST
    taken = set(held())
    for _ in range(size):
        # One draw after another moves on, so that the addresses of one request differ too.
        last[cidr] = (last.get(cidr, -1) + 1) % size
        address = str(subnet.network_address + FIRST + last[cidr])
        if address not in taken:
            return address
    raise RuntimeError(f"{cidr} is full")


elastic_network_interfaces.random_private_ip = next_free
runpy.run_module("localstack.runtime.main", run_name="__main__")
