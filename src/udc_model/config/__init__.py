"""Every parameter: typed, validated and described; and the files that parameters are read from."""

from udc_model.config.costs import LARGEST_COST, MOST_ACTIONS, SHARE_TOLERANCE, CostEntry, CostParams
from udc_model.config.data import CsvFile, DataParams, SplitShares
from udc_model.config.evaluate import CostCeiling, EvaluateParams, RecallFloor
from udc_model.config.loading import load_params, override_params, validate_params
from udc_model.config.loss import COST_SENSITIVE_LOSSES, LossParams
from udc_model.config.model import ConvNextParams, ModelParams, ResNetParams, TimmParams
from udc_model.config.params import Params, full_name, mapping_of, parameter_names, with_json_mappings
from udc_model.config.section import SPLITS
from udc_model.config.train import TrainParams

__all__ = [
    "COST_SENSITIVE_LOSSES",
    "LARGEST_COST",
    "MOST_ACTIONS",
    "SHARE_TOLERANCE",
    "SPLITS",
    "ConvNextParams",
    "CostCeiling",
    "CostEntry",
    "CostParams",
    "CsvFile",
    "DataParams",
    "EvaluateParams",
    "LossParams",
    "ModelParams",
    "Params",
    "RecallFloor",
    "ResNetParams",
    "SplitShares",
    "TimmParams",
    "TrainParams",
    "full_name",
    "load_params",
    "mapping_of",
    "override_params",
    "parameter_names",
    "validate_params",
    "with_json_mappings",
]
