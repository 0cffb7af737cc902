"""Vietnamese requests, as customers write them to a shop: with and without diacritics."""

from __future__ import annotations

from graftlm.data.requests.vietnamese_templates import TEMPLATES
from graftlm.data.requests.vocabulary import City, Dice, Item, Language, Pool, plain

__all__ = ["VIETNAMESE"]

NUMBERS = (
    "không", "một", "hai", "ba", "bốn", "năm", "sáu",
    "bảy", "tám", "chín", "mười", "mười một", "mười hai",
)  # fmt: skip

WEEKDAYS = {
    "mon": ("thứ hai", "thứ 2", "t2"),
    "tue": ("thứ ba", "thứ 3", "t3"),
    "wed": ("thứ tư", "thứ 4", "t4"),
    "thu": ("thứ năm", "thứ 5", "t5"),
    "fri": ("thứ sáu", "thứ 6", "t6"),
    "sat": ("thứ bảy", "thứ 7", "t7"),
    "sun": ("chủ nhật", "chủ nhật", "cn"),
}

NAMES = Pool(
    train=(
        "Lan", "Hùng", "Ngọc Anh", "Minh Thư", "Tuấn", "Hạnh", "Quỳnh", "Thảo", "Phúc", "Kiều",
        "Trang", "Dũng", "Hương", "Khánh Linh", "Đức", "Việt", "Nga", "Hiền", "Yến", "Thu Hà",
        "Khang", "Kiên", "Oanh", "Phượng", "Quân", "Sơn", "Thơm", "Thanh Tùng", "Vy", "Xuân",
        "Nhung", "Loan", "Hiếu", "Giang", "Diệp", "Châu", "Bích Ngọc", "Cường", "Nhã", "Thủy",
        "Hoàng", "Liên", "Tuyết", "Thục", "Vân", "Trung", "Hằng", "Đăng Khôi", "Mỹ Lệ", "Thắng",
        "Tình", "Toàn", "Cẩm Tú", "Huyền", "Phương", "Sương", "Trúc", "Hiệp", "Lâm", "Nhật Minh",
    ),
    heldout=(
        "Trâm", "Khoa", "Duyên", "Thịnh", "Gia Hân", "Tú Uyên", "Huy", "Trọng", "Luân", "Mỹ Tiên",
        "Quang Vinh", "Đoan", "Ngân", "Lộc", "Trí", "Hậu", "Nguyệt", "Tường Vi", "Phong", "Bách",
        "Diễm", "Kim Thoa", "Nhi", "Tấn",
    ),
)  # fmt: skip


def _item(classifier: str, name: str) -> Item:
    return Item(record=plain(name), one=f"{classifier} {name}", many=f"{classifier} {name}")


ITEMS = Pool(
    train=(
        _item("hộp", "trà sen"), _item("gói", "cà phê rang"), _item("chai", "mật ong"),
        _item("hộp", "bánh pía"), _item("cái", "áo thun"), _item("đôi", "giày thể thao"),
        _item("cuốn", "sổ tay"), _item("cái", "bình giữ nhiệt"), _item("cái", "túi vải"),
        _item("hũ", "muối tôm"), _item("hộp", "mứt gừng"), _item("chai", "nước mắm"),
        _item("cái", "ốp điện thoại"), _item("thùng", "xoài cát"), _item("kg", "hạt điều"),
        _item("gói", "bánh tráng"), _item("cái", "áo mưa"), _item("cái", "khăn len"),
        _item("cây", "bút máy"), _item("hũ", "nến thơm"), _item("chậu", "sen đá"),
        _item("ly", "trà sữa"), _item("phần", "cơm gà"), _item("hộp", "sữa chua"),
        _item("đôi", "dép lê"), _item("bộ", "chén sứ"), _item("kg", "nem chua"),
        _item("cái", "nón lá"), _item("bó", "hoa hồng"), _item("ly", "cà phê sữa"),
    ),
    heldout=(
        _item("hộp", "bánh cốm"), _item("gói", "trà atiso"), _item("chai", "dầu gội"),
        _item("cái", "gối ôm"), _item("đôi", "vớ len"), _item("cuốn", "truyện tranh"),
        _item("hũ", "chà bông"), _item("thùng", "sầu riêng"), _item("kg", "tôm khô"),
        _item("phần", "bún bò"), _item("ly", "nước mía"), _item("bộ", "ly thủy tinh"),
    ),
)  # fmt: skip

DEVICES = Pool(
    train=(
        "quạt máy", "nồi cơm điện", "máy xay", "tai nghe", "bàn phím", "loa bluetooth",
        "máy sấy tóc", "ấm siêu tốc", "bàn ủi", "đèn bàn", "máy hút bụi", "cân điện tử",
        "nồi chiên", "đồng hồ", "lò vi sóng", "camera", "máy in", "điện thoại", "bếp từ",
        "chuột không dây",
    ),
    heldout=(
        "sạc dự phòng", "máy ép", "máy cạo râu", "đèn ngủ", "bếp nướng", "máy lọc nước",
        "tay cầm chơi game", "máy khoan", "quạt trần", "lò nướng",
    ),
)  # fmt: skip


def _city(name: str, *others: str) -> City:
    return City(plain(name), (name, *others))


CITIES = Pool(
    train=(
        City("Ho Chi Minh", ("Sài Gòn", "TP.HCM", "SG", "Hồ Chí Minh", "HCM")),
        _city("Hà Nội", "HN"), _city("Đà Nẵng", "ĐN"), _city("Huế"), _city("Hải Phòng", "HP"),
        _city("Nha Trang"), _city("Đà Lạt"), _city("Quy Nhơn"), _city("Thanh Hóa"),
        _city("Biên Hòa"), _city("Bắc Ninh"), _city("Nam Định"), _city("Long Xuyên"),
        _city("Buôn Ma Thuột", "BMT"), _city("Thái Nguyên"),
    ),
    heldout=(
        _city("Cần Thơ"), _city("Vũng Tàu"), _city("Hạ Long"), _city("Mỹ Tho"), _city("Hội An"),
        _city("Pleiku"),
    ),
)  # fmt: skip

PROBLEMS = {
    "broken": (
        "bị hư", "mới dùng đã hỏng", "bật không lên", "bị nứt", "bị bể khi giao",
        "chạy được một ngày là chết", "có mùi khét",
    ),
    "late": (
        "chưa thấy giao", "trễ cả tuần rồi", "hẹn thứ hai mà giờ chưa tới",
        "đợi hoài không thấy", "ba tuần rồi vẫn chưa nhận được",
    ),
    "wrong": (
        "sai màu", "giao nhầm mẫu", "không đúng loại đã đặt", "sai kích cỡ",
        "khác hẳn hình trên web",
    ),
    "incomplete": (
        "thiếu dây cắm", "thiếu phụ kiện", "thiếu sách hướng dẫn", "thiếu mất con ốc",
        "giao thiếu bộ sạc",
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


def _people(dice: Dice, number: int) -> str:
    return f"{_number(dice, number)} người"


def _count(dice: Dice, item: Item, number: int) -> str:
    return f"{_number(dice, number)} {item.one if number == 1 else item.many}"


def _when(dice: Dice, day: str, hour: int, minute: int) -> str:
    """``"7 rưỡi tối mai"``, ``"tối thứ 6 lúc 7h30"`` or ``"19h30 hôm nay"``."""
    twelve = hour % 12 or 12
    if hour > 12 and dice.chance(0.25):
        clock = f"{hour}h{minute:02d}" if minute else f"{hour}h"
        return f"{clock} {_day(dice, day)}"
    said = {
        0: (f"{twelve}h", f"{twelve} giờ", f"{NUMBERS[twelve]} giờ"),
        15: (f"{twelve}h15", f"{twelve} giờ 15"),
        30: (f"{twelve}h30", f"{twelve} rưỡi", f"{twelve} giờ rưỡi", f"{NUMBERS[twelve]} rưỡi"),
        45: (f"{twelve}h45", f"{twelve % 12 + 1} giờ kém 15"),
    }
    clock = dice.pick(said[minute])
    part = "sáng" if hour < 11 else "trưa" if hour < 13 else "chiều" if hour < 18 else "tối"
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
    names=NAMES,
    items=ITEMS,
    devices=DEVICES,
    cities=CITIES,
    problems=PROBLEMS,
    wishes=WISHES,
    openers=("Shop ơi!", "Chào shop!", "Alo!", "Ad ơi!", "Chào bạn!"),
    closers=("Cảm ơn shop", "Thanks", "Cảm ơn nhiều ạ", "🙏", "😊", "Cảm ơn"),
    shorthand={
        "không": "ko", "mình": "mk", "Mình": "Mk", "được": "đc", "nhé": "nha", "với": "vs",
        "rồi": "r", "giúp": "giùm", "Cảm ơn": "Cám ơn",
    },
    people=_people,
    count=_count,
    when=_when,
    drops_diacritics=True,
)  # fmt: skip
