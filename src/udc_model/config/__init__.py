"""Every parameter: typed, validated, described; and the files that parameters are read from."""

from udc_model.config.params import (
    COST_SENSITIVE_LOSSES as COST_SENSITIVE_LOSSES,
)
from udc_model.config.params import (
    SPLITS as SPLITS,
)
from udc_model.config.params import (
    ConvNextParams as ConvNextParams,
)
from udc_model.config.params import (
    CostEntry as CostEntry,
)
from udc_model.config.params import (
    CostParams as CostParams,
)
from udc_model.config.params import (
    CsvFile as CsvFile,
)
from udc_model.config.params import (
    DataParams as DataParams,
)
from udc_model.config.params import (
    EvaluateParams as EvaluateParams,
)
from udc_model.config.params import (
    LossParams as LossParams,
)
from udc_model.config.params import (
    ModelParams as ModelParams,
)
from udc_model.config.params import (
    Params as Params,
)
from udc_model.config.params import (
    ResNetParams as ResNetParams,
)
from udc_model.config.params import (
    SplitShares as SplitShares,
)
from udc_model.config.params import (
    TrainParams as TrainParams,
)
from udc_model.config.params import (
    full_name as full_name,
)
from udc_model.config.params import (
    load_params as load_params,
)
from udc_model.config.params import (
    validate_params as validate_params,
)
