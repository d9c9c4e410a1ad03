"""Pictures to look at: grids of images, plots of points, animations of either."""

from flowmatch.pictures.animation import Animation as Animation
from flowmatch.pictures.animation import check_animation as check_animation
from flowmatch.pictures.animation import image_frames as image_frames
from flowmatch.pictures.animation import point_frames as point_frames
from flowmatch.pictures.animation import save_animation as save_animation
from flowmatch.pictures.animation import states_over_time as states_over_time
from flowmatch.pictures.grid import columns_for as columns_for
from flowmatch.pictures.grid import image_grid as image_grid
from flowmatch.pictures.plots import figure_image as figure_image
from flowmatch.pictures.plots import scatter as scatter
