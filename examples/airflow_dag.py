"""Run the four stages as an Airflow DAG; each task leaves an executed notebook.

Not run: tests/test_examples.py compiles it with stand-ins for Airflow's classes.
"""

from airflow import DAG
from airflow.providers.papermill.operators.papermill import PapermillOperator

CONFIG = "configs/demo.cpu.yaml"
FOLDER = "outputs/airflow"
STAGES = ("01_data", "02_train", "03_evaluate", "04_publish")

with DAG(dag_id="kwanzaa", schedule=None, catchup=False) as dag:
    before = None
    for stage in STAGES:
        task = PapermillOperator(
            task_id=stage,
            input_nb=f"nbs/{stage}.ipynb",
            output_nb=f"{FOLDER}/notebooks/{stage}.ipynb",
            parameters={"config": CONFIG, "overrides": {"run.output_dir": FOLDER}},
        )
        if before is not None:
            before >> task
        before = task
