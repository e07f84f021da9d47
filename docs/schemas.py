"""Write the JSON Schemas of the YAML files, which editors check against; see `make schemas`."""

import json
from pathlib import Path

from pipeline.config.registry import models_schema
from pipeline.workflow.spec import Workflow

SCHEMAS = {
    "models.schema.json": models_schema,
    "workflow.schema.json": Workflow.model_json_schema,
}


def main() -> None:
    """Write every schema beside this file."""
    for name, schema in SCHEMAS.items():
        text = json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"
        Path(__file__).with_name(name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
