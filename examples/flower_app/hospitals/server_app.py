"""The server: an ordinary Flower ServerApp whose strategy runs on a SecAggGrid."""

from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from hospitals.task import accuracy, initial_model
from secagg.adapters.flower import SecAggGrid

app = ServerApp()


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"accuracy": accuracy({name: array.numpy() for name, array in arrays.items()})})


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedAvg(fraction_evaluate=0.0)
    secure = SecAggGrid.of(grid, context, strategy)
    strategy.start(
        grid=secure,
        initial_arrays=ArrayRecord({name: Array(array) for name, array in initial_model().items()}),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=evaluate,
    )
    print(secure.statement())
