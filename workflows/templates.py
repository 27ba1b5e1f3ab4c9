"""The table of this folder's templates: their notes, and the functions that draw their graphs. `layout.py` turns a
graph into a file, and `build.py` writes the files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from graphs import (
    INTERPOLATION,
    NETWORK,
    SR600,
    cut_and_drag,
    everything_together,
    extended_video,
    first_and_last,
    four_steps,
    image_motion_transfer,
    inpainting_moving_mask,
    long_video_changing_text,
    long_video_context_windows,
    more_frames_a_second,
    motion_by_hand_camera,
    motion_by_hand_tracks,
    published_network,
    restyled_video,
    second_pass,
    single_sketch_style,
    super_resolution,
    text_depth,
    text_depth_style,
    text_motion_transfer,
    text_sketch_sequence,
    text_to_video,
)
from layout import Graph

SMALL = (
    "The bundled checkpoint is small: simple shapes, 64 x 64 pixels, 16 frames. 12 steps are enough for it. Use 20 "
    "steps or more for larger checkpoints."
)


@dataclass(frozen=True)
class Template:
    """One template: the three sentences of its note, and the function that adds its nodes to a graph.

    Attributes:
        build_thumbnail: adds the nodes for its thumbnail, if its own nodes need files that must be downloaded.
        ending: the note's last paragraphs.
    """

    does: str
    change: str
    attempt: str
    build: Callable[[Graph], None]
    build_thumbnail: Callable[[Graph], None] | None = None
    ending: str = SMALL

    def note(self, name: str) -> str:
        return (
            f"## {name.lstrip('0123456789 ')}\n\n{self.does}\n\n**Change** {self.change}\n\n"
            f"**Try** {self.attempt}\n\n{self.ending}"
        )


TEMPLATES = {
    "01 Text to video": Template(
        "Generates a video from a line of text.",
        "the text: a circle, square, triangle, diamond, star or ring in a colour, on stripes, checks, blobs or a "
        "gradient in two colours.",
        "other seeds, or a higher cfg if the video does not follow the text.",
        text_to_video,
    ),
    "02 Motion from a clip": Template(
        "The text says what the video shows, the clip says how it moves.",
        "the clip: connect Load Video instead of the example, and set frame_rate to the number of frames to use per "
        "second.",
        "another direction of the example, or end_percent 0.5: the motion then only sets the layout.",
        text_motion_transfer,
    ),
    "03 Image with motion from a clip": Template(
        "The video starts with an image and moves like a clip.",
        "the image (connect Load Image to Single Image) and the clip (connect Load Video).",
        "strength 0 on Motion Vectors: without a motion, the network invents one.",
        image_motion_transfer,
    ),
    "04 Motion along drawn tracks": Template(
        "The video starts with an image, and the masked part follows a track that you draw.",
        "the track (draw it on the node's canvas), and the image with a mask of what should move.",
        "several tracks, or no mask: then a circle around the start of each track moves.",
        motion_by_hand_tracks,
    ),
    "05 Motion of a camera": Template(
        "A camera moves while the disc follows a drawn track: the socket 'add_to' adds two motions.",
        "pan_right, pan_down, zoom and roll. To remove the track, connect Camera Motion directly to STC Encode.",
        "larger checkpoints: the bundled one was trained on moving objects, and follows the track but not the camera.",
        motion_by_hand_camera,
    ),
    "06 Restyle a video": Template(
        "Repaints a video as a text says. Sampling starts from its frames, sketches and depth keep its layout, "
        "and its sound stays.",
        "the video: connect Load Video to Get Video Components, and the frames to Depth Sequence with input set to 'a "
        "video' and a depth network in models/videocomposer. Or disconnect the depth.",
        "denoise: at 0.4 the result stays closer to the video, at 0.8 closer to the text.",
        restyled_video,
    ),
    "07 Repaint an area that moves": Template(
        "Repaints an area that moves with the clip, and keeps the rest.",
        "the text, the clip (connect Load Video to 'video' of Mask Sequence), and the mask (connect your own to 'mask' "
        "of Grow Mask: one for all frames, or one for each frame).",
        "white set to 'area to keep': the disc stays and the background is repainted.",
        inpainting_moving_mask,
    ),
    "08 Depth from a clip": Template(
        "The text says what the video shows. Depth maps set the place of everything, and its distance.",
        "the depth: connect Load Video and set input to 'a video', with a depth network in models/videocomposer.",
        "end_percent 0.4: then the depth sets the layout and the text sets the outlines.",
        text_depth,
    ),
    "09 Depth with the style of an image": Template(
        "Depth maps set the layout, an image sets the style, and the text leaves the colours open.",
        "the two colours of the style image, or connect Load Image to 'image' of Style Embed. For your own clip, "
        "connect Load Video to 'video' of Depth Sequence and set input to 'a video', with a depth network in "
        "models/videocomposer.",
        "the strength of the style: at 0 the colours are random.",
        text_depth_style,
    ),
    "10 Sketches from a clip": Template(
        "The text says what the video shows. A sketch of every frame sets the outlines.",
        "the clip: connect Load Video. The method 'pidinet' draws sketches as in the released network's training.",
        "your own sketches: connect an image batch, and set the method to 'is a sketch, dark lines' (or bright lines).",
        text_sketch_sequence,
    ),
    "11 One sketch with the style of an image": Template(
        "One sketch sets the layout, an image sets the style, and the text leaves the colours open.",
        "the sketch (connect Load Image and set the matching method), and the two colours of the style image.",
        "the strength of the style, or a text with other colours than the image.",
        single_sketch_style,
    ),
    "12 Long video in windows": Template(
        "Generates twice as many frames as the checkpoint was trained for, in overlapping windows.",
        "frames on Motion from Tracks: the video is as long as its longest condition. For your own image, connect Load "
        "Image to 'image' of Single Image and of Motion from Tracks, and its mask to 'mask' there.",
        "a larger context_overlap: seams become softer and sampling slower.",
        long_video_context_windows,
    ),
    "13 More frames a second": Template(
        "Adds frames between those of a video, with ComfyUI's own interpolation node (new in 2026).",
        f"nothing, but download {INTERPOLATION} (the page offers it) into models/frame_interpolation.",
        "4 times as many frames.",
        more_frames_a_second,
        build_thumbnail=text_motion_transfer,
    ),
    "14 Everything together": Template(
        "Text, style, motion, depth, sketches, mask, first image and single sketch, all at once: they replace the disc "
        "of the clip by another one.",
        "the strength of any condition: 0 is the same as disconnecting it. For your own clip, connect Load Video to "
        "'video' of Motion Vectors, Sketch Sequence, Mask Sequence and Depth Sequence (input 'a video'), and a mask to "
        "Grow Mask.",
        "start_percent and end_percent: for example motion and depth at the beginning, style at the end.",
        everything_together,
    ),
    "15 Large network with the style of an image": Template(
        "Generates a video from a line of text and the style of an image with TF-T2V: 448 x 256, 16 frames. Size, "
        "steps, cfg, sampler and scheduler are set to auto, as the network recommends.",
        "the text and the image. To use no image, bypass Style Embed and Load CLIP Vision.",
        "VideoLCM with 4 steps: choose videolcm_vcomposer_non_ema_914000.pth and few_steps 'yes'. Or "
        "non_ema_228000.pth, 256 x 256, with few_steps 'auto'.",
        published_network,
        build_thumbnail=text_to_video,
        ending=f"**Files** `./vc get {NETWORK}` on the command line downloads the network into models/videocomposer. "
        "It is not for commercial use. The page offers the other three files. If the browser saves the image encoder "
        "as model.safetensors, choose that name in Load CLIP Vision.\n\n"
        "VGen, the source of these networks, adds this to every text:\n\n"
        "> , cinematic, High Contrast, highly detailed, no blur, 4k render\n\nand uses this negative text:\n\n"
        "> Distorted, discontinuous, Ugly, blurry, low resolution, motionless, static, disfigured, disconnected limbs, "
        "Ugly faces, incomplete arms",
    ),
    "16 Second pass at twice the size": Template(
        "Enlarges a video twice and samples it again with its conditions, from 40 % noise, in overlapping tiles of the "
        "checkpoint's size.",
        "the text and the clip (connect Load Video to 'video' of Motion Vectors, and an image to Single Image). To "
        "enlarge with an upscale model, replace Upscale Image By with Upscale Image (using Model).",
        "denoise of the second sampler: at 0.2 the video only becomes cleaner, at 0.6 also larger details change.",
        second_pass,
    ),
    "17 First and last frame": Template(
        "Composes the frames between two images, which stay the first and the last frame of the video.",
        "the two images: connect two Load Image to Batch Images. More images work too: add their frame numbers to "
        "'indices'.",
        "indices '0, 8, -1' with three images, or only '-1': the video ends with an image.",
        first_and_last,
    ),
    "18 Cut and drag": Template(
        "The disc is cut out of the image and dragged along a slow track. The video is sampled from this draft: it "
        "follows slow motion more closely than the motion condition alone.",
        "the track, and the image with a mask of what should move. Camera Motion works too.",
        "inside 0.3 on Cut and Drag: the draft stays almost as it is. At 0.7 the network has more freedom.",
        cut_and_drag,
    ),
    "19 Extend a video": Template(
        "Continues a video: its last four frames are kept, twelve new ones follow. Its sound stays.",
        "the video: connect Load Video to Get Video Components. It should have about 8 frames per second, and it is "
        "joined at its own size.",
        "indices '0:8', and batch_index 8 on The new frames: more kept frames show more of the motion.",
        extended_video,
    ),
    "20 Super resolution": Template(
        "Adds detail to an enlarged video with VGen's super-resolution network, and keeps its sound.",
        "the video (connect Load Video to Get Video Components), and the beginning of the text: what the video shows.",
        "another shape with about as many pixels, for example 960 x 960.",
        super_resolution,
        build_thumbnail=second_pass,
        ending=f"**Files** `./vc get {SR600}` on the command line downloads the network into models/videocomposer. The "
        "page offers the other two files. The rest of the text, and the negative text, are VGen's.\n\nAt this size the "
        "network needs a GPU with much memory. We compared it with reference values at a small size, but have not "
        "looked at its results.",
    ),
    "21 Long video with changing text": Template(
        "Generates four times as many frames as the checkpoint was trained for. The text changes gradually.",
        "the two texts, and frame on Text Schedule: the frame at which the change is complete.",
        "noise set to 'independent' on the sampler: the background then changes more from window to window. Or a third "
        "text with another Text Schedule.",
        long_video_changing_text,
    ),
    "22 Four steps": Template(
        "Generates a video in four steps without guidance, so several times as fast, with a LoRA that was distilled "
        "from the checkpoint.",
        "the text and the clip, as in 'Motion from a clip'. For another LoRA of this kind, choose its checkpoint too, "
        "and keep few_steps at 'yes'.",
        "8 steps. Or the other templates in four steps: put the LoRA after the checkpoint, set few_steps to 'yes', and "
        "on the sampler steps and cfg to 0, sampler_name and scheduler to 'auto'.",
        four_steps,
        ending="The bundled checkpoint is small: simple shapes, 64 x 64 pixels, 16 frames.",
    ),
}
