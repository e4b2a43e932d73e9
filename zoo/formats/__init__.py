"""Reads and writes architectures in other projects' notations. One module each; standard library only.

| notation                         | read                  | write                 | body                  |
|----------------------------------|-----------------------|-----------------------|-----------------------|
| DARTS' `Genotype` tuple          | `from_darts`          | `to_darts`            | Cells                 |
| ENAS' arc, micro search          | `from_enas_micro`     | `to_enas_micro`       | Cells                 |
| ENAS' arc, macro search          | `from_enas_macro`     | `to_enas_macro`       | Chain                 |
| NAS-Bench-201's cell string      | `from_nasbench201`    | `to_nasbench201`      | Cells without reduce  |
| MnasNet's block strings, timm's  | `from_mnasnet`        | `to_mnasnet`          | Blocks                |
| MCUNet's JSON configuration      | `from_mcunet`         | `to_mcunet`           | Blocks                |

Readers take values, what Python and NumPy print of them, and JSON. They return a Genotype that `zoo.build` builds in
any preset of its family. All functions raise GenotypeError, with the place, for input that is not in the notation and
for an architecture that the notation cannot express. Nothing that is read is executed.
"""

from zoo.formats.darts import from_darts, to_darts
from zoo.formats.enas import from_enas_macro, from_enas_micro, to_enas_macro, to_enas_micro
from zoo.formats.mcunet import from_mcunet, to_mcunet
from zoo.formats.mnasnet import from_mnasnet, to_mnasnet
from zoo.formats.nasbench201 import from_nasbench201, to_nasbench201

__all__ = [
    "from_darts", "from_enas_macro", "from_enas_micro", "from_mcunet", "from_mnasnet", "from_nasbench201",
    "to_darts", "to_enas_macro", "to_enas_micro", "to_mcunet", "to_mnasnet", "to_nasbench201",
]  # fmt: skip
