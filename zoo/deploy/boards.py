"""Does a .tflite file fit on a board? Makers' figures of memory beside the planner's prediction."""

from typing import NamedTuple

from zoo.deploy.planner import Plan

KIB = 1024


class Board(NamedTuple):
    """Bytes of RAM and of flash that the chip itself has, and the name of its neural processor, as vela has it."""

    chip: str
    ram: int
    flash: int
    npu: str | None = None


class UnknownBoardError(ValueError):
    """No board of that name is in the table."""


# Data sheets of the makers. Where RAM is in several banks, the largest block that lies in one piece.
BOARDS = {
    "stm32f412": Board("STM32F412", 256 * KIB, 1024 * KIB),
    "stm32f746": Board("STM32F746", 320 * KIB, 1024 * KIB),
    "stm32f765": Board("STM32F765", 512 * KIB, 2048 * KIB),
    "stm32h743": Board("STM32H743", 512 * KIB, 2048 * KIB),
    "nrf52840": Board("nRF52840 (Arduino Nano 33 BLE)", 256 * KIB, 1024 * KIB),
    "nrf5340": Board("nRF5340", 512 * KIB, 1024 * KIB),
    "rp2040": Board("RP2040 (Raspberry Pi Pico)", 264 * KIB, 2048 * KIB),
    "esp32s3": Board("ESP32-S3 (8 MB module)", 512 * KIB, 8192 * KIB),
    # Its internal SRAM; models lie in its DDR memory.
    "corstone300": Board("Corstone-300 (Cortex-M55 and Ethos-U55)", 2048 * KIB, 256 * 1024 * KIB, "ethos-u55-128"),
}


class Fit(NamedTuple):
    """Bytes left over of each memory, less than zero is what is missing; and what keeps TFLM from running the file."""

    board: Board
    ram_left: int
    flash_left: int
    refusals: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether nothing is missing, and TFLM runs the file."""
        return self.ram_left >= 0 and self.flash_left >= 0 and not self.refusals

    def __str__(self) -> str:
        if self.fits:
            return (
                f"fits on {self.board.chip}: {_format_kb(self.ram_left)} of RAM and {_format_kb(self.flash_left)} of "
                "flash are left"
            )
        missing = [
            f"{_format_kb(-left)} of {memory} too much"
            for memory, left in (("RAM", self.ram_left), ("flash", self.flash_left))
            if left < 0
        ]
        return f"does not fit on {self.board.chip}: {' and '.join([*self.refusals, *missing])}"


def fit(plan: Plan, board: str) -> Fit:
    """Compares the file's arena and size with a board of `BOARDS`; the program's own code and data come on top.

    Raises:
        UnknownBoardError: not in the table.
    """
    if board not in BOARDS:
        raise UnknownBoardError(f"board={board!r} is unknown; expected one of {', '.join(BOARDS)}")
    found = BOARDS[board]
    return Fit(found, found.ram - plan.arena, found.flash - plan.flash, plan.refusals)


def _format_kb(size: int) -> str:
    return f"{size / 1000:,.1f} kB"
