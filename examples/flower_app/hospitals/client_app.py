"""A hospital: an ordinary Flower ClientApp, and one mod."""

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from hospitals.task import fit, load_hospital
from secagg.adapters.flower import SecAggMod

app = ClientApp(mods=[SecAggMod()])


@app.train()
def train(message: Message, context: Context) -> Message:
    model = {name: array.numpy() for name, array in message.content["arrays"].items()}
    features, labels = load_hospital(context.node_config["partition-id"], context.node_config["num-partitions"])
    settings = context.run_config
    model, loss = fit(model, features, labels, settings["local-steps"], settings["learning-rate"])
    arrays = ArrayRecord({name: Array(array) for name, array in model.items()})
    metrics = MetricRecord({"num-examples": len(labels), "train_loss": loss})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
