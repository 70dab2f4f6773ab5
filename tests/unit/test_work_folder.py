"""Where a pull works: the first folder with enough space, for this user alone."""

from jaxway.container import work_folder

GB = 10**9


def space(size):
    return work_folder.Space(size, work_folder.MAX_INODES)


def test_folder_with_enough_space_is_chosen(tmp_path, monkeypatch):
    sif, small, large = tmp_path / "jax.sif", tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    monkeypatch.setenv("APPTAINER_TMPDIR", str(small))
    monkeypatch.setenv("TMPDIR", str(large))
    real = work_folder.os.statvfs(tmp_path)

    def statvfs(path):
        free = {small: GB, large: 9 * GB}.get(path, 0)
        blocks = free // real.f_frsize
        return type(real)((*real[:4], blocks, real.f_files, 10**9, 10**9, *real[8:]))

    monkeypatch.setattr(work_folder.os, "statvfs", statvfs)
    assert work_folder.choose(sif, None, space(GB // 2)).parent == small
    assert work_folder.choose(sif, None, space(2 * GB)).parent == large
    assert work_folder.choose(sif, small, space(2 * GB)).parent == small  # asked for
    nowhere = work_folder.choose(sif, None, space(20 * GB))
    assert nowhere.parent == tmp_path
    assert nowhere.stat().st_mode & 0o777 == 0o700
    assert work_folder.choose(tmp_path / "other.sif", None, space(20 * GB)) != nowhere
