from .backbone import BackboneTests as BackboneTests
from .data_module import EpisodicDataModuleTests as EpisodicDataModuleTests
from .meta_module import MetaModuleTests as MetaModuleTests
from .multi_task_module import MultiTaskModuleTests as MultiTaskModuleTests
from .rare_tasks import RareTasks as RareTasks
