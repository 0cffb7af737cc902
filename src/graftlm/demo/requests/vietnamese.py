"""Vietnamese requests, as customers write them to a shop: with and without diacritics."""

from __future__ import annotations

from graftlm.demo.requests.vietnamese_templates import INTRODUCTIONS, SIGNATURES, TEMPLATES
from graftlm.demo.requests.vocabulary import Dice, Language, Pool

__all__ = ["VIETNAMESE"]

NUMBERS = (
    "không", "một", "hai", "ba", "bốn", "năm", "sáu",
    "bảy", "tám", "chín", "mười", "mười một", "mười hai",
)  # fmt: skip

WEEKDAYS = {
    "mon": ("thứ 2", "t2"),
    "tue": ("thứ 3", "t3"),
    "wed": ("thứ 4", "t4"),
    "thu": ("thứ 5", "t5"),
    "fri": ("thứ 6", "t6"),
    "sat": ("thứ 7", "t7"),
    "sun": ("chủ nhật", "cn"),
}

NAMES = Pool(
    train=(
        "Lan", "Hùng", "Tuấn", "Hạnh", "Quỳnh", "Thảo", "Phúc", "Kiều", "Trang", "Dũng", "Hương",
        "Đức", "Việt", "Nga", "Hiền", "Yến", "Khang", "Kiên", "Oanh", "Phụng", "Quân", "Sơn",
        "Thơm", "Tùng", "Vy", "Xuân", "Nhung", "Loan", "Hiếu", "Giang", "Diệp", "Châu", "Cường",
        "Nhã", "Thủy", "Hoàng", "Liên", "Tuyết", "Thục", "Vân", "Trung", "Hằng", "Khôi", "Thắng",
        "Toàn", "Huyền", "Phương", "Sương", "Trúc", "Hiệp", "Lâm", "Nhật", "Bích", "Cúc", "Dương",
        "Hà", "Khuê", "Linh", "Nghĩa", "Quyên", "Thuận", "Kha", "Uyên", "Vượng", "Tài", "Lợi",
        "Phát", "Vũ", "Quý", "Danh", "Chiến", "Định", "Khanh", "Nguyên", "Thái", "Mẫn", "Tín",
        "Thạch", "Khuyên", "Lương", "Công", "Hoan", "Hợp", "Đào", "Nghi", "Thiện",
    ),
    heldout=(
        "Trâm", "Khoa", "Duyên", "Thịnh", "Hân", "Huy", "Vĩnh", "Luân", "Tiên", "Đoan", "Ngân",
        "Lộc", "Trinh", "Hậu", "Nguyệt", "Tuyền", "Phong", "Bách", "Diễm", "Thoa", "Nhi", "Tấn",
    ),
)  # fmt: skip

SECOND_NAMES = Pool(
    train=(
        "Ngọc", "Thu", "Khánh", "Thanh", "Đăng", "Cẩm", "Diệu", "Quốc", "Như", "Tuệ", "Hồng",
        "Bình", "Mạnh", "Phước",
    ),
    heldout=("Thiên", "Mỹ", "Quang", "Kim", "Hữu", "Thùy"),
)  # fmt: skip

NOUNS = Pool(
    train=(
        ("cái", "quạt máy"), ("cái", "nồi cơm"), ("cái", "bình trà"), ("cái", "áo thun"),
        ("đôi", "giày"), ("cuốn", "sổ tay"), ("cái", "túi vải"), ("cái", "đèn bàn"),
        ("cái", "ba lô"), ("cái", "ghế"), ("cái", "máy xay"), ("cái", "tai nghe"),
        ("cái", "bàn phím"), ("cái", "loa"), ("cái", "máy sấy"), ("cái", "ấm nước"),
        ("cái", "khăn tắm"), ("cái", "nón"), ("cái", "đồng hồ"), ("cái", "điện thoại"),
        ("cái", "gương"), ("cái", "vali"), ("đôi", "dép"), ("cái", "áo mưa"), ("cái", "mền"),
        ("cái", "chảo"), ("cái", "kệ sách"), ("bộ", "chén"), ("cây", "dù"), ("cái", "ví da"),
        ("cây", "đàn"), ("cái", "bếp điện"), ("chiếc", "xe đạp"), ("cái", "camera"),
        ("cái", "bình hoa"), ("tấm", "rèm"), ("cái", "máy in"), ("cái", "giỏ mây"),
        ("cái", "hộp cơm"), ("cái", "váy"),
    ),
    heldout=(
        ("cái", "gối ôm"), ("cái", "máy ép"), ("đôi", "vớ"), ("cái", "lồng đèn"),
        ("cái", "máy khoan"), ("cái", "nệm"), ("cái", "tạp dề"), ("cái", "lò nướng"),
        ("cây", "quạt đứng"), ("cái", "tủ giày"), ("chiếc", "nhẫn"), ("tấm", "thảm"),
    ),
)  # fmt: skip

ADJECTIVES = Pool(
    train=(
        "đỏ", "nhỏ", "đen", "lớn", "xanh lá", "xám", "trắng", "màu kem", "mini", "vàng", "cao cấp",
        "màu be", "hồng", "loại tốt", "cỡ vừa", "đời mới", "màu đen", "xanh nhạt", "giá tốt",
        "loại nhỏ", "màu trắng",
    ),
    heldout=("tím", "màu nâu", "loại to", "xanh dương", "giá rẻ", "kiểu mới"),
)  # fmt: skip

CITIES = Pool(
    train=(
        "Sài Gòn", "Hà Nội", "Đà Nẵng", "Huế", "Hải Phòng", "Nha Trang", "Đà Lạt", "Quy Nhơn",
        "Thanh Hóa", "Biên Hòa", "Bắc Ninh", "Nam Định", "Long Xuyên", "Buôn Ma Thuột", "Rạch Giá",
        "Thái Nguyên", "Phan Thiết", "Tây Ninh", "Bến Tre", "Cà Mau", "Việt Trì", "Lào Cai",
        "Kon Tum", "Bạc Liêu", "Hà Giang", "Tuy Hòa", "Đồng Hới", "Sóc Trăng",
    ),
    heldout=(
        "Cần Thơ", "Vũng Tàu", "Hạ Long", "Mỹ Tho", "Hội An", "Pleiku", "Ninh Bình", "Vĩnh Long",
        "Sa Đéc", "Điện Biên",
    ),
)  # fmt: skip

PROBLEMS = {
    "broken": (
        "bị hư", "mới dùng đã hỏng", "bị nứt", "bị bể khi giao", "dùng được một ngày là hư",
        "bị gãy", "mở ra đã bể",
    ),
    "late": (
        "chưa thấy giao", "giao trễ cả tuần", "vẫn chưa tới", "đợi hoài không thấy",
        "ba tuần rồi vẫn chưa nhận được", "lại giao trễ",
    ),
    "wrong": (
        "sai màu", "giao nhầm mẫu", "không đúng loại đã đặt", "sai kích cỡ",
        "khác hẳn hình trên web", "bị giao nhầm",
    ),
}  # fmt: skip

WISHES = {
    "refund": (
        "Hoàn tiền giúp với", "Cho xin lại tiền", "Trả lại tiền đi", "Muốn lấy lại tiền",
        "Chuyển khoản lại tiền nhé",
    ),
    "replacement": (
        "Đổi cái khác giúp với", "Gửi lại cái mới nhé", "Muốn đổi hàng", "Đổi giúp cái mới",
        "Cho đổi hàng nhé",
    ),
    None: ("Xem lại giúp với", "Giờ phải làm sao", "Gọi lại nhé", "Kiểm tra giúp với"),
}  # fmt: skip


def _number(dice: Dice, number: int) -> str:
    return dice.pick((str(number), NUMBERS[number]))


def _count(dice: Dice, classifier: str, item: str, number: int) -> str:
    return f"{_number(dice, number)} {classifier} {item}"


def _people(dice: Dice, number: int) -> str:
    return f"{_number(dice, number)} người"


def _when(dice: Dice, day: str, hour: int, minute: int) -> str:
    """``"7 rưỡi tối mai"``, ``"tối thứ 6 lúc 7h30"`` or ``"19h30 hôm nay"``."""
    twelve = hour % 12 or 12
    if hour > 12 and dice.chance(0.25):
        clock = f"{hour}h{minute:02d}" if minute else f"{hour}h"
        return f"{clock} {_day(dice, day)}"
    said = {
        0: (f"{twelve}h", f"{twelve} giờ", f"{NUMBERS[twelve]} giờ"),
        30: (f"{twelve}h30", f"{twelve} rưỡi", f"{twelve} giờ rưỡi", f"{NUMBERS[twelve]} rưỡi"),
    }
    clock = dice.pick(said[minute])
    part = "trưa" if hour < 14 else "tối"
    named = {"today": "nay", "tomorrow": "mai"}.get(day) or dice.pick(WEEKDAYS[day])
    return dice.pick((f"{clock} {part} {named}", f"{part} {named} lúc {clock}"))


def _day(dice: Dice, day: str) -> str:
    if day == "today":
        return "hôm nay"
    if day == "tomorrow":
        return dice.pick(("ngày mai", "mai"))
    return dice.pick(WEEKDAYS[day])


VIETNAMESE = Language(
    templates=TEMPLATES,
    introductions=INTRODUCTIONS,
    signatures=SIGNATURES,
    names=NAMES,
    second_names=SECOND_NAMES,
    nouns=NOUNS,
    adjectives=ADJECTIVES,
    cities=CITIES,
    problems=PROBLEMS,
    wishes=WISHES,
    openers=(
        "Shop ơi!", "Chào shop!", "Alo!", "Ad ơi!", "Chào bạn!", "Xin chào!", "Dạ chào shop.",
        "Cho hỏi chút.", "Alo shop!",
    ),
    closers=("Cảm ơn shop", "Thanks", "Cảm ơn nhiều ạ", "🙏", "😊", "Cảm ơn"),
    shorthand={
        "không": "ko", "mình": "mk", "Mình": "Mk", "được": "đc", "nhé": "nha", "với": "vs",
        "rồi": "r", "giúp": "giùm", "Cảm ơn": "Cám ơn",
    },
    item=lambda noun, adjective: f"{noun} {adjective}",
    full_name=lambda name, second: f"{second} {name}",
    count=_count,
    people=_people,
    days={day: forms[1] for day, forms in WEEKDAYS.items()} | {"today": "nay", "tomorrow": "mai"},
    when=_when,
    drops_diacritics=True,
)  # fmt: skip
