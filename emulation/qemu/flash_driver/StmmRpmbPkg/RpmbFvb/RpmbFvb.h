/** @file
  The flash that OP-TEE's secure storage stands in for: its geometry, its copy in memory, and
  the storage calls.

  SPDX-License-Identifier: MIT
**/

#ifndef RPMB_FVB_H_
#define RPMB_FVB_H_

#include <PiMm.h>

#include <Guid/SystemNvDataGuid.h>
#include <Guid/VariableFormat.h>
#include <Library/PcdLib.h>
#include <Protocol/SmmFirmwareVolumeBlock.h>

#define FLASH_BLOCK_SIZE  SIZE_4KB
#define VARIABLE_SIZE     FixedPcdGet32 (PcdFlashNvStorageVariableSize)
#define FLASH_SIZE        (VARIABLE_SIZE +                                      \
                           FixedPcdGet32 (PcdFlashNvStorageFtwWorkingSize) +    \
                           FixedPcdGet32 (PcdFlashNvStorageFtwSpareSize))
#define FLASH_BLOCKS      (FLASH_SIZE / FLASH_BLOCK_SIZE)
#define ERASED_BYTE       0xFF

///
/// The flash's content in memory, FLASH_SIZE bytes. It never runs ahead of the storage: what is
/// here was taken by OP-TEE. Variables are read from it directly, without a call of this driver.
///
extern UINT8  *mFlash;

///
/// FLASH_SIZE bytes of ERASED_BYTE, the source of every erase: an erase must not need memory.
///
extern UINT8  *mErased;

/**
  Fill a buffer with bytes of the file in OP-TEE's storage.

  @param[in]  Offset   First byte, from the start of the file.
  @param[in]  Length   Number of bytes; all of them have to be in the file.
  @param[out] Buffer   Receives them.

  @retval EFI_SUCCESS            All bytes were read.
  @retval EFI_INVALID_PARAMETER  There is no file, it is too short, or the storage failed.
  @retval others                 The storage failed.
**/
EFI_STATUS
StorageRead (
  IN  UINTN  Offset,
  IN  UINTN  Length,
  OUT UINT8  *Buffer
  );

/**
  Write bytes to the file in OP-TEE's storage, which makes the file if there is none.

  OP-TEE writes either all bytes or none: one 256-byte block in place, more by a new copy of the
  whole file.

  @param[in] Offset   First byte, from the start of the file.
  @param[in] Length   Number of bytes.
  @param[in] Buffer   The bytes.

  @retval EFI_SUCCESS  The bytes are in the storage.
  @retval others       The storage failed; what it holds is old or new.
**/
EFI_STATUS
StorageWrite (
  IN UINTN        Offset,
  IN UINTN        Length,
  IN CONST UINT8  *Buffer
  );

/**
  Write a range of the flash: the storage first, then the copy in memory.

  @param[in] Offset   First byte, from the start of the flash.
  @param[in] Length   Number of bytes; the range lies in the flash.
  @param[in] Buffer   The bytes.

  @retval EFI_SUCCESS  Both have the bytes.
  @retval others       The storage failed; the copy is unchanged.
**/
EFI_STATUS
FlashWrite (
  IN UINTN        Offset,
  IN UINTN        Length,
  IN CONST UINT8  *Buffer
  );

/**
  Fill the copy in memory from the storage, and format both if what is there is no store of
  this geometry.

  @retval EFI_SUCCESS  mFlash is a firmware volume with a variable store, as the storage has it.
  @retval others       The storage failed, or could not say whether there is a store.
**/
EFI_STATUS
LoadFlash (
  VOID
  );

#endif // RPMB_FVB_H_
