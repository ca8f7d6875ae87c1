"""stub"""
from refmodel.machine import Machine


class Machine417(Machine):
    """stub"""
