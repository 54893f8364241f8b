from .inference import outside_inference_mode as outside_inference_mode
from .inner_loop import inner_loop as inner_loop
from .logistic_regression import logistic_regression as logistic_regression
from .prototypes import class_means as class_means
from .prototypes import cosine_similarity as cosine_similarity
from .prototypes import squared_euclidean as squared_euclidean
from .task_map import TaskMap as TaskMap
from .task_map import task_map as task_map
