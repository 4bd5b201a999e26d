"""Read the flow of a pump through the gateway's Modbus bridge."""

import socket
import struct

GATEWAY = ("192.168.20.1", 1502)
FLOW_REGISTER = 40021  # litres per minute, one register


def read_register(unit: int, register: int) -> int:
    """Return one holding register of a unit behind the bridge."""
    request = struct.pack(">HHHBBHH", 1, 0, 6, unit, 3, register - 40001, 1)
    with socket.create_connection(GATEWAY, timeout=5) as connection:
        connection.sendall(request)
        answer = connection.recv(260)
    return struct.unpack(">H", answer[9:11])[0]


if __name__ == "__main__":
    for pump in (1, 2, 3):
        print(f"pump {pump}: {read_register(pump, FLOW_REGISTER)} l/min")
