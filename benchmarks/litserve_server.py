"""The server of LitServe with which `serving.py` compares `udc serve`: the same model, in batches as large.

pip install litserve
python benchmarks/litserve_server.py FOLDER PORT
"""

import sys
from pathlib import Path
from typing import Any

import litserve
import pandas as pd
from fastapi import Request

from udc_model.inference.serving import ServedClassifier


class Decisions(litserve.LitAPI):
    """Decides images in base64 text, in the form ``dataframe_records``."""

    def setup(self, device: str) -> None:
        """Load the model."""
        self.served = ServedClassifier(Path(sys.argv[1]))

    def decode_request(self, request: Request) -> str:  # what LitServe passes is its JSON
        """The image of a request."""
        return str(request["dataframe_records"][0]["image"])

    def batch(self, inputs: list[str]) -> list[str]:
        """The images of several requests."""
        return inputs

    def predict(self, images: list[str] | str) -> list[dict[str, Any]]:
        """Decide the images."""
        rows = [images] if isinstance(images, str) else images
        return list(self.served.predict(pd.DataFrame({"image": rows})).to_dict("records"))

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The answer of each request."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """The answer as JSON."""
        return {"predictions": output}


if __name__ == "__main__":
    api = Decisions(max_batch_size=64, batch_timeout=0.002, api_path="/invocations")
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
