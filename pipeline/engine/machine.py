"""What an engine's author asks of the machine before a server is started; pipeline/machine.py does the counting."""

from pipeline.machine import memory_limit as memory_limit
from pipeline.machine import usable_cores as usable_cores
