"""DeepSpeed and FSDP2 on CPUs."""

SHARDING = {
    "zero_force_ds_cpu_optimizer": False,
    "zero_allow_untested_optimizer": True,
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "train_batch_size": "auto",
    "gradient_clipping": "auto",
}

# On GPUs accelerate starts DeepSpeed's process group before the model loads; told to use the CPU,
# it does not. Without its kernel for CPUs that share memory, which it would first compile for
# minutes: gloo does the same.
DEEPSPEED_ON_CPU = """
import sys
import deepspeed
# By its full name: the attribute `torch` of deepspeed.comm is torch itself.
sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
deepspeed.init_distributed(dist_backend="gloo")
"""
# On CPUs accelerate silently takes DDP in place of FSDP2 (AcceleratorState lists the devices that
# may shard).
FSDP_ON_CPU = """
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
original = AcceleratorState.__init__
def init(self, *args, fsdp_plugin=None, **kwargs):
    original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin
AcceleratorState.__init__ = init
"""
